"""What a loss looks like around one point: curvature, directions, slices and canyons."""
