"""What touches Flower: its messages and its Grid, its apps on our engine, and ours on a deployment of its processes."""
