"""Measurements that say how near a run is to what the machine can do."""
