"""The packaged architecture: every cell inside a box predicts it, or proposes it to a Faster R-CNN."""
