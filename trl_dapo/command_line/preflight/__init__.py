"""The parts of `trl-dapo check`: arithmetic, the machine, a short run, and what is said of them."""
