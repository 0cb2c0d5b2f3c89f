"""The front door: an HTTP server that speaks OpenAI's API and shows a web page, in front of Triton over its gRPC.

It knows the client library and nothing else of the models, and keeps nothing between requests, so that any number of
gateways may stand side by side.
"""
