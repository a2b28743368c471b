"""What every arbiter runs on: the arbiter itself, the bus it talks over, the host that drives it."""
