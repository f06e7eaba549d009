"""Events from outside, the runs that they begin, and the bus as a stream and as a socket."""
