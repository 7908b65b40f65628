package artifact

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestContainers(t *testing.T) {
	root := t.TempDir()
	docker, kube, ghost := strings.Repeat("d0", 32), strings.Repeat("e0", 32), strings.Repeat("f0", 32)
	place(t, root, map[string]string{
		"var/lib/docker/containers/" + docker + "/config.v2.json":                      `{"ID":"x","Name":"/miner","Created":"2026-01-02T03:04:05Z","Path":"sh","State":{"Running":true,"Pid":20},"Config":{"Image":"evil"}}`,
		"var/lib/docker/containers/" + docker + "/hostconfig.json":                     `{"Privileged":true,"NetworkMode":"host"}`,
		"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + kube + "/config.json": `{"process":{"args":["/app"]},"annotations":{"io.kubernetes.cri.sandbox-name":"pod"}}`,
		"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + kube + "/init.pid":    "30",
		"var/lib/containers/storage/overlay-containers/containers.json":                `[{"id":"stopped","names":["old"],"image":"i"}]`,
		"var/lib/docker/containers/broken/config.v2.json":                              `{`,
		"proc/20/cgroup": "0::/system.slice/docker-" + docker + ".scope\n",
		"proc/21/cgroup": "0::/system.slice/docker-" + docker + ".scope\n",
		"proc/40/cgroup": "0::/kubepods.slice/cri-containerd-" + ghost + ".scope\n",
	})
	plantLink(t, root, "net:[4026531840]", "proc/1/ns/net")
	plantLink(t, root, "net:[4026531840]", "proc/20/ns/net")
	plantLink(t, root, "net:[77]", "proc/40/ns/net")
	got, record := table[Container](t, &Host{Root: root}, "containers")
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dir := Text("/var/lib/docker/containers/" + docker)
	want := []Container{
		{Runtime: "docker", ID: Text(docker), Name: "miner", Image: "evil", Command: []Text{"sh"}, Created: &created, State: "running", InitPID: 20, Privileged: true,
			Namespaces: []Text{"network=host"}, Files: []Text{dir + "/config.v2.json"}, Cgroup: Text("/system.slice/docker-" + docker + ".scope"), PIDs: []int{20, 21}, NetNS: 4026531840, HostNetNS: true},
		{Runtime: "containerd", ID: Text(kube), Command: []Text{"/app"}, User: "0:0", InitPID: 30, Pod: "pod", Labels: map[string]Text{"io.kubernetes.cri.sandbox-name": "pod"},
			Files: []Text{Text("/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + kube + "/config.json")}},
		{Runtime: "containerd", ID: Text(ghost), Cgroup: Text("/kubepods.slice/cri-containerd-" + ghost + ".scope"), PIDs: []int{40}, NetNS: 77},
		{Runtime: "podman", ID: "stopped", Name: "old", ImageID: "i", Files: []Text{"/var/lib/containers/storage/overlay-containers/containers.json"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if find(t, record, "/var/lib/docker/containers/broken/config.v2.json").Note != NoteOdd {
		t.Error("a broken file went unsaid")
	}
}
