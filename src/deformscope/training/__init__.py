"""Training, evaluation in the loop and the ablation of Table 1. The one room that knows Lightning and YAML."""
