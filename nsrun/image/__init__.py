# SPDX-License-Identifier: Apache-2.0
"""Images: from an OCI layout, an archive or a registry to the layers of which a member's root is made.

    references   names: mysql:8, docker.io/library/mysql:8, …@sha256:…
    documents    index, manifest and config, checked; which image of an index fits this machine
    source       a layout directory or an archive, as names → bytes
    unpack       one layer: read, decompress, hash, and pass to nsrun-unpack, the confined writer
    store        what is kept below LIB/images, and when it may be removed
    lookup       from a name or an id to an image: all that join needs
    intake       load and pull, from outside into the store
    pull         from a registry, through skopeo
    bundle       an image's config as an OCI runtime config; `image unpack`

OCI image-spec 1.1; docs/images.md has the rules.
"""
