package artifact

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// metadataServer is a metadata service of version 2.
func metadataServer(t *testing.T, pages map[string]string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "security-credentials/web") {
			t.Error("credentials were asked for")
		}
		page, ok := pages[r.URL.Path]
		switch {
		case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut && r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != "" && pages != nil:
			w.Write([]byte("TOKEN"))
		case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "TOKEN" || r.Method != http.MethodGet:
			w.WriteHeader(http.StatusForbidden)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			w.Write([]byte(page))
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestInstanceMetadata(t *testing.T) {
	url := metadataServer(t, map[string]string{
		"/latest/meta-data/instance-id":               "i-0123",
		"/latest/meta-data/instance-type":             "m7g.large",
		"/latest/meta-data/iam/security-credentials/": "web",
		"/latest/dynamic/instance-identity/document":  `{"accountId":"123456789012","marketplaceProductCodes":null}`,
		"/latest/user-data":                           "abc",
		"/latest/meta-data/tags/instance":             "Name\n../../iam/security-credentials/web\n",
		"/latest/meta-data/tags/instance/Name":        "prod",
	})
	got, record := table[InstanceMetadata](t, &Host{MetadataURL: url, Root: t.TempDir()}, "instance_metadata")
	want := []InstanceMetadata{{Endpoint: url, InstanceID: "i-0123", Document: map[string]Text{"accountId": "123456789012"},
		DocumentText: `{"accountId":"123456789012","marketplaceProductCodes":null}`, Pages: map[string]Text{"instance-type": "m7g.large"}, Role: []Text{"web"},
		Tags: map[string]Text{"Name": "prod"}, UserDataBytes: 3, UserDataSHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if find(t, record, url+"/latest/meta-data/tags/instance").Note != NoteOdd {
		t.Error("a tag that is a path went unsaid")
	}
}

func TestInstanceMetadataRefused(t *testing.T) {
	url := metadataServer(t, nil)
	got, record := table[InstanceMetadata](t, &Host{MetadataURL: url, Root: t.TempDir()}, "instance_metadata")
	if e := find(t, record, url+"/latest/api/token"); len(got) != 0 || !strings.Contains(string(e.Error), "403") {
		t.Errorf("got %+v, on record is %+v", got, e)
	}
}
