"""What candidates are asked: one module for each kind of probe."""
