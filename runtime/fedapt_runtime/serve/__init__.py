"""Classification as a service: HTTP in front of the classifier (extra `serve`).

    command      the options of `fedapt-runtime serve`
    server       the socket, TLS, signals and shutdown
    app          routes
    page         the HTML pages and static files
    access       tokens, the log and request metrics
    connections  deadlines of idle connections
    service      the models, their queues, and the path of an image
    batcher      dynamic batching of images from different requests
    body, forms  request bodies, within limits
    limits       limits for each request and for the server
    metrics      metrics for Prometheus
    openapi      the OpenAPI document
    protocol_v2  the Open Inference Protocol, with `tensors` for its bodies

Only `command` works without the packages of the extra. It imports the other modules when it runs.
"""
