"""What runs when, where it lies, and by which kernel: order, layouts, placement, tuning."""
