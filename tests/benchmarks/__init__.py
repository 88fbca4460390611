"""Speed and memory as ratios, measured in turn in one run: `make bench`. See __main__."""
