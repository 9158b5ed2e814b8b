"""One training run: its network, losses, callbacks, folder and detections."""
