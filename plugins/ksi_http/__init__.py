"""HTTP: keys from outside, and the sidecar that answers them."""
