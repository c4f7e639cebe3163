"""The graph's transforms: each file has plain functions, and one small PTransform around them."""
