"""Read checkpoints of deformscope and other frameworks; files are untrusted."""
