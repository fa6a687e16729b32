"""A recipe that trains two small networks on made-up images in a second."""

CONTENT = {
    "name": "tiny",
    "data": {"name": "synthetic", "num_classes": 4, "channels": 3, "num_train": 64},
    "members": [
        {"name": "small", "model": "wide_resnet", "depth": 10, "width": 1},
        {"name": "large", "model": "wide_resnet", "depth": 10, "width": 2},
    ],
    "sharing": {"budget": 0.83},
    "training": {"epochs": 1, "batch_size": 32, "num_threads": 1, "precision": "float32", "learning_rate": 0.05},
}
