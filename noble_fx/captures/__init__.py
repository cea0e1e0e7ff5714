"""From a model to graphs: the user's modules, symbolic tracing, torch.export, Dynamo."""
