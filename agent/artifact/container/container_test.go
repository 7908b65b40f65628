package container

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const dockerConfig = `{"ID":"d1","Name":"/miner","Image":"sha256:abc","Created":"2026-01-02T03:04:05Z","Path":"/bin/sh","Args":["-c","x"],
"State":{"Running":true,"Pid":77,"StartedAt":"2026-01-02T03:04:06Z"},"Config":{"User":"root","Image":"evil:latest","Hostname":"h","Labels":{"a":"b"}},
"MountPoints":{"/host":{"Source":"/","Destination":"/host","Type":"bind","RW":true}}}`

const dockerHost = `{"Privileged":true,"CapAdd":["SYS_ADMIN"],"NetworkMode":"host","PidMode":"host"}`

func TestDocker(t *testing.T) {
	got, err := Docker([]byte(dockerConfig))
	if err == nil {
		err = got.DockerHost([]byte(dockerHost))
	}
	want := Container{ID: "d1", Name: "miner", Image: "evil:latest", ImageID: "sha256:abc", Command: []string{"/bin/sh", "-c", "x"}, User: "root", Hostname: "h",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Started: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), PID: 77, State: "running", Privileged: true,
		Capabilities: []string{"+SYS_ADMIN"}, Namespaces: []string{"network=host", "pid=host"}, Mounts: []Mount{{"/", "/host", "bind", "rw"}}, Labels: map[string]string{"a": "b"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

const bundle = `{"process":{"args":["/pause"],"user":{"uid":65535,"gid":1},"capabilities":{"effective":["CAP_CHOWN"]}},"root":{"path":"rootfs"},
"mounts":[{"destination":"/etc/hosts","type":"bind","source":"/var/lib/kubelet/x","options":["rbind","ro"]}],
"annotations":{"io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.sandbox-namespace":"kube-system","io.kubernetes.cri.image-name":"pause:3"},
"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/x"}],"maskedPaths":["/proc/acpi"]}}`

func TestOCI(t *testing.T) {
	got, err := OCI([]byte(bundle))
	want := Container{Image: "pause:3", Command: []string{"/pause"}, User: "65535:1", RootFS: "rootfs", Capabilities: []string{"CAP_CHOWN"}, Masked: 1,
		Namespaces: []string{"pid", "network=/var/run/netns/x"}, Mounts: []Mount{{"/var/lib/kubelet/x", "/etc/hosts", "bind", "rbind,ro"}}, Pod: "p", PodNamespace: "kube-system"}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Container{}, "Labels")); diff != "" || err != nil || len(got.Labels) != 3 {
		t.Error(diff, err)
	}
}

func TestStorage(t *testing.T) {
	got, err := Storage([]byte(`[{"id":"p1","names":["n"],"image":"i","metadata":"{\"image-name\":\"docker.io/x\",\"name\":\"web\"}","created":"2026-01-02T03:04:05Z"}]`))
	if err != nil || len(got) != 1 || got[0].Name != "web" || got[0].Image != "docker.io/x" || got[0].ImageID != "i" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestOfCgroup(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for path, runtime := range map[string]string{
		"/system.slice/docker-" + id + ".scope": "docker",
		"/docker/" + id:                         "docker",
		"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope/x": "containerd",
		"/machine.slice/libpod-" + id + ".scope/container":                      "podman",
		"/kubepods/burstable/pod1/" + id:                                        "",
		"/system.slice/x.service/kubepods-pod.slice:cri-containerd:" + id:       "",
	} {
		if got, by := OfCgroup(path); got != id || by != runtime {
			t.Errorf("%s: got %q by %q", path, got, by)
		}
	}
	if got, _ := OfCgroup("/system.slice/docker-short.scope"); got != "" {
		t.Errorf("got %q", got)
	}
}

func FuzzContainer(f *testing.F) {
	f.Add([]byte(dockerConfig))
	f.Add([]byte(dockerHost))
	f.Add([]byte(bundle))
	f.Add([]byte(`[{"id":"p1","metadata":"{}"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _ := Docker(data)
		c.DockerHost(data)
		o, _ := OCI(data)
		all, _ := Storage(data)
		for _, c := range append(all, c, o) {
			if len(c.Command) > MaxList || len(c.Labels) > MaxList || len(c.Name) > MaxText {
				t.Error("unbounded")
			}
			if _, err := c.Created.MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
	})
}
