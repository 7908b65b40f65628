package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/quicklime-ir/quicklime/collector/locker"
)

// TestTheNewestSnapshot is the one that was taken last, whichever node took
// it; what is no snapshot is none.
func TestTheNewestSnapshot(t *testing.T) {
	listed := []string{"state/a/20261126T180000Z.db", "state/b/20261126T183000Z.db", "state/b/20991231T235959Z.db.part", "state/c/20261126T181500Z.db", "state/x"}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.URL.Query().Has("list-type") {
			if strings.HasSuffix(r.URL.Path, "/cut.db") {
				w.Header().Set("Content-Length", "100") // and then less
			}
			fmt.Fprint(w, "content of ", r.URL.Path)
			return
		}
		fmt.Fprint(w, "<ListBucketResult>")
		for _, key := range listed {
			fmt.Fprintf(w, "<Contents><Key>%s</Key><Size>1</Size></Contents>", key)
		}
		fmt.Fprint(w, "</ListBucketResult>")
	}))
	defer server.Close()
	bucket, err := locker.New(aws.Config{Region: "eu-west-1", BaseEndpoint: &server.URL, Retryer: func() aws.Retryer { return aws.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "SECRETEXAMPLE", "")}, locker.Config{Bucket: "evidence"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	key, err := newest(t.Context(), bucket)
	if err != nil || key != "state/b/20261126T183000Z.db" {
		t.Errorf("the newest is %q, %v", key, err)
	}
	dir := t.TempDir()
	path, err := download(t.Context(), bucket, key, dir)
	if err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "content of /evidence/"+key {
		t.Errorf("downloaded is %q, %v", content, err)
	}
	if _, err := download(t.Context(), bucket, "state/a/cut.db", dir); err == nil {
		t.Error("a download that was cut is taken")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("left behind are %v, %v", left, err)
	}
	listed = nil
	if _, err := newest(t.Context(), bucket); err == nil || !strings.Contains(err.Error(), "there is no snapshot under state/") {
		t.Errorf("of an empty bucket: %v", err)
	}
}
