"""Stands in for models' providers: real processes and real wires, with faults on demand."""
