"""Compute and cluster blocks of config.yaml for the golden texts of jobs: laptop, one node, eight, Jean Zay-like."""

NO_SITE = {"account": None, "partition": None, "constraint": None, "qos": None, "extra": ""}
JEAN_ZAY = {
    "account": "abc@v100",
    "partition": None,
    "constraint": "v100-32g",
    "qos": "qos_gpu-t3",
    "extra": "--hint=nomultithread",
}
LAPTOP = {
    "nodes": 1,
    "devices_per_node": 1,
    "cpus_per_device": 2,
    "hours": 1,
    "device": "cpu",
    "precision": "fp32",
    "checkpoint_minutes": 1,
}
ONE_NODE = {
    "nodes": 1,
    "devices_per_node": 2,
    "cpus_per_device": 10,
    "hours": 20,
    "device": "auto",
    "precision": "auto",
    "checkpoint_minutes": 10,
}
EIGHT_NODES = {**ONE_NODE, "nodes": 8, "devices_per_node": 4}
V100 = {**EIGHT_NODES, "device": "cuda", "precision": "fp16", "hang_minutes": 5, "channels_last": False}
