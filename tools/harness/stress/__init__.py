"""tools/trials: what must hold in hard times, tried often."""
