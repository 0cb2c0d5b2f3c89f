"""Between Triton's Python objects and the other rooms: tensors, configuration, metrics, what stands behind a model.

Must not know how a server is started. `pb_utils` is handed in by the models, so nothing here needs a server.
"""
