"""The web page and the JSON API of a finished run.

| module | holds |
| --- | --- |
| `api` | the endpoints, and how errors are answered |
| `service` | `Service`: answers the endpoints' questions from an encoder and a database |
| `schemas` | the JSON objects of the API |
| `server` | the HTTP server, with limits on connections |
| `limits` | `Limits` on requests and connections, and the error `Refused` |
| `gate` | applies the limits on requests |
| `uploads` | the bytes of the photo in a request |
| `decoders` | processes that decode uploaded photos |
| `workers` `batcher` | the network, which encodes the photos of many requests in batches |
| `thumbnails` | small JPEGs of the database's photos |
| `counters` | counters for Prometheus |
| `serve.html` | the page |

The modules need the packages of the extra `serve`; importing this package alone does not.
"""
