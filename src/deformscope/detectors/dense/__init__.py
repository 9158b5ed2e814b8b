"""The packaged architecture: every cell inside a box predicts it, or proposes regions for a Faster R-CNN."""
