"""The ablation of the paper's Table 1: its runs, intervals, table and plot."""
