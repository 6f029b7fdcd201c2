"""Classification as a service: HTTP in front of the classifier (extra `serve`).

    command      the options of `fedapt-runtime serve`
    server       the socket, TLS, deadlines of connections, the end
    app          routes
    service      the models, their queues, and what answers an image
    batcher      images that came apart, computed together
    body, forms  what a client sends, within limits
    protocol_v2  the Open Inference Protocol, with `tensors` for its bodies

Everything but `command` imports packages of the extra, and is imported by the command alone.
"""
