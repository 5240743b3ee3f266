"""A client of the container runtime interface, speaking as the kubelet does.

The messages are generated from `cri.proto`; after changing it, from the repository's root:

    .venv/bin/python -m grpc_tools.protoc -Itests/lab/gen=tests/lab --python_out=. --pyi_out=. tests/lab/gen/cri.proto

Pods run in the node's network, so no CNI is needed; but one with a user namespace, which a runtime allows in a network of
its own only. Every call's failure is `grpc.RpcError`, whose `details()` is the text that a pod's event would show.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from tests.lab.gen import cri_pb2 as api
from tests.lab.services import Client

_Answer = TypeVar("_Answer", bound=Message)
_RUNTIME = "runtime.v1.RuntimeService"
_IMAGES = "runtime.v1.ImageService"
_TIMEOUT = 120.0


#: The pod's annotation that leads pulls to its runtime handler's snapshotter (containerd's `runtime_platforms`).
RUNTIME_HANDLER = "io.containerd.cri.runtime-handler"


@dataclass(frozen=True, slots=True)
class UserIds:
    """The host's users and groups of a pod in a user namespace: its 0 is `first`."""

    first: int
    length: int = 65536


@dataclass(frozen=True, slots=True)
class Pod:
    """A running sandbox, and the configuration that CRI wants to see again with every container."""

    id: str
    config: api.PodSandboxConfig


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in a container wrote, and its exit status."""

    stdout: bytes
    stderr: bytes
    code: int


class Cri(Client):
    """Closes with its `with`."""

    def __init__(self, socket: Path, cgroup_parent: str = "", logs: Path | None = None) -> None:
        super().__init__(socket)
        self._cgroup_parent = cgroup_parent
        self._logs = logs

    def is_ready(self) -> bool:
        """Whether the runtime answers; the network is not asked for."""
        try:
            self._runtime("Version", api.VersionRequest(), api.VersionResponse, timeout=2)
            status = self._runtime("Status", api.StatusRequest(), api.StatusResponse, timeout=2).status
        except grpc.RpcError:
            return False
        return any(condition.type == "RuntimeReady" and condition.status for condition in status.conditions)

    def runtime_handlers(self) -> dict[str, bool]:
        """By name, the default one's empty: whether it can give a pod a user namespace, idmapped mounts included."""
        answer = self._runtime("Status", api.StatusRequest(), api.StatusResponse)
        return {each.name: each.features.user_namespaces for each in answer.runtime_handlers}

    def version(self) -> str:
        return self._runtime("Version", api.VersionRequest(), api.VersionResponse).runtime_version

    def pull(
        self,
        image: str,
        auth: tuple[str, str] | None = None,
        sandbox_config: api.PodSandboxConfig | None = None,
        *,
        runtime_handler: str = "",
        timeout: float = _TIMEOUT,
    ) -> str:
        """PullImage; `auth` is a pod's pull secret (name, password). The image's id.

        `runtime_handler`: in ImageSpec, as kubelet says it with its feature gate RuntimeClassInImageCriApi.
        """
        spec = api.ImageSpec(image=image, runtime_handler=runtime_handler)
        request = api.PullImageRequest(image=spec, sandbox_config=sandbox_config)
        if auth:
            request.auth.username, request.auth.password = auth
        return self._images("PullImage", request, api.PullImageResponse, timeout=timeout).image_ref

    def pod_config(
        self, name: str = "pod", annotations: Mapping[str, str] | None = None, user_ids: UserIds | None = None
    ) -> api.PodSandboxConfig:
        """`user_ids` puts the pod into a user namespace, and then into a network of its own."""
        namespaces = api.NamespaceOption(network=api.POD if user_ids else api.NODE)
        if user_ids:
            mapping = api.IDMapping(host_id=user_ids.first, container_id=0, length=user_ids.length)
            namespaces.userns_options.CopyFrom(api.UserNamespace(mode=api.POD, uids=[mapping], gids=[mapping]))
        linux = api.LinuxPodSandboxConfig(
            cgroup_parent=self._cgroup_parent,
            security_context=api.LinuxSandboxSecurityContext(namespace_options=namespaces),
        )
        metadata = api.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="lab")
        return api.PodSandboxConfig(
            metadata=metadata, log_directory=str(self._logs or ""), annotations=annotations, linux=linux
        )

    def run_pod(
        self,
        name: str = "pod",
        runtime_handler: str = "",
        annotations: Mapping[str, str] | None = None,
        user_ids: UserIds | None = None,
        *,
        timeout: float = _TIMEOUT,
    ) -> Pod:
        """`runtime_handler` is a RuntimeClass' `handler`; empty for the node's default."""
        config = self.pod_config(name, annotations, user_ids)
        request = api.RunPodSandboxRequest(config=config, runtime_handler=runtime_handler)
        return Pod(
            self._runtime("RunPodSandbox", request, api.RunPodSandboxResponse, timeout=timeout).pod_sandbox_id, config
        )

    def create_container(
        self,
        pod: Pod,
        image: str,
        volumes: Mapping[str, str] | None = None,
        command: Sequence[str] = ("/bin/sleep", "2147483647"),
        name: str = "main",
        *,
        host_files: Mapping[str, Path] | None = None,
        timeout: float = _TIMEOUT,
    ) -> str:
        """`volumes` mounts images, by container path; give the ids that `pull` returned, as the kubelet does. In a user
        namespace they are mapped, while `host_files`, by container path too, have the owners they have."""
        namespaces = pod.config.linux.security_context.namespace_options
        ids = {"uidMappings": namespaces.userns_options.uids, "gidMappings": namespaces.userns_options.gids}
        mounts = [
            api.Mount(container_path=path, readonly=True, image=api.ImageSpec(image=volume), **ids)
            for path, volume in (volumes or {}).items()
        ]
        mounts += [api.Mount(container_path=path, host_path=str(file)) for path, file in (host_files or {}).items()]
        context = api.LinuxContainerSecurityContext(namespace_options=namespaces)
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name),
            image=api.ImageSpec(image=image),
            command=command,
            mounts=mounts,
            log_path=f"{name}.log" if self._logs else "",
            linux=api.LinuxContainerConfig(security_context=context),
        )
        request = api.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return self._runtime("CreateContainer", request, api.CreateContainerResponse, timeout=timeout).container_id

    def start(self, container: str) -> None:
        self._runtime("StartContainer", api.StartContainerRequest(container_id=container), api.StartContainerResponse)

    def exec(self, container: str, command: Sequence[str], *, timeout: float = _TIMEOUT) -> Ran:
        """Runs `command` in a running container to its end; its output arrives whole."""
        request = api.ExecSyncRequest(container_id=container, cmd=command, timeout=int(timeout))
        ran = self._runtime("ExecSync", request, api.ExecSyncResponse, timeout=timeout + 10)
        return Ran(ran.stdout, ran.stderr, ran.exit_code)

    def is_running(self, container: str) -> bool:
        request = api.ContainerStatusRequest(container_id=container)
        state = self._runtime("ContainerStatus", request, api.ContainerStatusResponse).status.state
        return bool(state == api.CONTAINER_RUNNING)

    def stats(self, container: str) -> api.ContainerStats:
        """As the kubelet's summary asks for them."""
        request = api.ContainerStatsRequest(container_id=container)
        return self._runtime("ContainerStats", request, api.ContainerStatsResponse).stats

    def stop(self, container: str, grace: int = 0) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL."""
        request = api.StopContainerRequest(container_id=container, timeout=grace)
        self._runtime("StopContainer", request, api.StopContainerResponse)

    def remove(self, container: str) -> None:
        request = api.RemoveContainerRequest(container_id=container)
        self._runtime("RemoveContainer", request, api.RemoveContainerResponse)

    def stop_pod(self, pod: Pod | str) -> None:
        """Stops its containers, and unmounts its image volumes."""
        request = api.StopPodSandboxRequest(pod_sandbox_id=_id(pod))
        self._runtime("StopPodSandbox", request, api.StopPodSandboxResponse)

    def remove_pod(self, pod: Pod | str) -> None:
        """Stops and removes it with its containers."""
        self.stop_pod(pod)
        request = api.RemovePodSandboxRequest(pod_sandbox_id=_id(pod))
        self._runtime("RemovePodSandbox", request, api.RemovePodSandboxResponse)

    def list_pods(self) -> list[str]:
        answer = self._runtime("ListPodSandbox", api.ListPodSandboxRequest(), api.ListPodSandboxResponse)
        return [pod.id for pod in answer.items]

    def list_images(self) -> list[api.Image]:
        return list(self._images("ListImages", api.ListImagesRequest(), api.ListImagesResponse).images)

    def image_status(self, image: str) -> api.Image | None:
        """None if the runtime does not have it."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
        answer = self._images("ImageStatus", request, api.ImageStatusResponse)
        return answer.image if answer.HasField("image") else None

    def remove_image(self, image: str) -> None:
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
        self._images("RemoveImage", request, api.RemoveImageResponse)

    def image_fs_info(self) -> list[api.FilesystemUsage]:
        answer = self._images("ImageFsInfo", api.ImageFsInfoRequest(), api.ImageFsInfoResponse)
        return list(answer.image_filesystems)

    def _runtime(self, verb: str, request: Message, answer: type[_Answer], *, timeout: float = _TIMEOUT) -> _Answer:
        return self._call(f"/{_RUNTIME}/{verb}", request, answer, timeout)

    def _images(self, verb: str, request: Message, answer: type[_Answer], *, timeout: float = _TIMEOUT) -> _Answer:
        return self._call(f"/{_IMAGES}/{verb}", request, answer, timeout)

    def _call(self, path: str, request: Message, answer: type[_Answer], timeout: float) -> _Answer:
        call = self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
        answered: _Answer = call(request, timeout=timeout, wait_for_ready=True)
        return answered


def _id(pod: Pod | str) -> str:
    return pod if isinstance(pod, str) else pod.id
