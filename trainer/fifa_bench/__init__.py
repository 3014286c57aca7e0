"""FiFa-Bench: one documented record of what was asked and one of what was answered, and the honest figures between them."""
