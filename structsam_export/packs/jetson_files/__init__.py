"""What a Jetson kit holds: copied by `packs.jetson`, never imported by us."""
