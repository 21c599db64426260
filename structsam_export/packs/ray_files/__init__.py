"""What runs on Ray Serve: copied into packs by `packs.ray_serve`, never imported by us."""
