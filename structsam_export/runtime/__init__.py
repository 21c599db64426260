"""What surrounds the engines at run time: preparing photos and turning logits into masks."""
