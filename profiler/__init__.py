"""The cost of a model and where its time goes on this device. Knows nothing of plans or HTTP."""
