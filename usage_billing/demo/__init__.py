"""The main job on real data: every flight that left New York in 2013, metered, priced and invoiced to its carrier."""
