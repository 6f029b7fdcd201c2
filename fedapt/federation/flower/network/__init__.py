"""The network of a deployment: a server that answers registered nodes and nobody else.

A node makes four requests over HTTPS: join, take (a message, waited for), reply, and seen. Each is
signed with the node's key, and the server looks at nothing else of a request before the signature
is right. There is no other interface: the operator's requests are files in the server's folder.
"""
