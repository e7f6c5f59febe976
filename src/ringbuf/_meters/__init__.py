"""What counts and limits: a token bucket, rate windows, histograms."""
