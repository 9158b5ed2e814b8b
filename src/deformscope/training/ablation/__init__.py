"""The ablation of the paper's Table 1: runs, intervals, tables and a plot."""
