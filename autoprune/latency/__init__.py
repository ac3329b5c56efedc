"""What a policy costs on a target: measured tables of operator geometries and the predictor built on them."""
