"""How far an image is from the data a model was trained on: the joint score, its fit, and measures of detection."""
