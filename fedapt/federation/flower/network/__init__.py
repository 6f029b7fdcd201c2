"""The network of a deployment: a server that answers registered nodes only.

A node makes four requests over HTTPS: join, take (a message, waited for), reply, and seen. Each
request is signed with the node's key. The server verifies the signature before it reads anything
else of the request. There is no other interface: the operator's requests are files in the server's
folder.
"""
