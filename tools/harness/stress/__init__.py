"""tools/stress: few open files, dead peers and kills, each tried many times."""
