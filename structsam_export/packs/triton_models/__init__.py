"""What runs inside Triton's Python backend: copied into model repositories by `packs.triton`, never imported by us.

Imports of `structsam_export.runtime` lead to the copy beside each model there, so that a server needs NumPy and Pillow
and nothing of ours.
"""
