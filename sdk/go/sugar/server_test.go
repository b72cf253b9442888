// SPDX-License-Identifier: Apache-2.0

//go:build server

// What the module does with a server that really builds: `go test -tags server ./...`, with the server named by the environment.

package sugar_test

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"kiln.dev/sdk/go/builder"
	"kiln.dev/sdk/go/contentservice"
	"kiln.dev/sdk/go/sugar"
)

func setting(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: these tests need a server, see tests/src/sdk.rs", name)
	}
	return value
}

func dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(setting(t, "KILN_TEST_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

func request(t *testing.T) *builder.BuildRequest {
	git := &contentservice.GitInitializer{
		RemoteUri:  setting(t, "KILN_TEST_REPOSITORY"),
		TargetMode: contentservice.CloneTargetMode_REMOTE_BRANCH,
		CloneTaget: setting(t, "KILN_TEST_BRANCH"),
	}
	file := &builder.BuildSourceDockerfile{
		Source:            &contentservice.WorkspaceInitializer{Spec: &contentservice.WorkspaceInitializer_Git{Git: git}},
		DockerfilePath:    "Dockerfile",
		ContextPath:       ".",
		DockerfileVersion: "go",
	}
	total := &builder.BuildRegistryAuthTotal{AllowAll: true}
	return &builder.BuildRequest{
		Source: &builder.BuildSource{From: &builder.BuildSource_File{File: file}},
		Auth:   &builder.BuildRegistryAuth{Mode: &builder.BuildRegistryAuth_Total{Total: total}},
	}
}

func TestAgainstAServer(t *testing.T) {
	ctx := background(t)
	connection := dial(t)
	client := builder.NewImageBuilderClient(connection)

	base := setting(t, "KILN_TEST_BASE")
	resolved, err := client.ResolveBaseImage(ctx, &builder.ResolveBaseImageRequest{Ref: base, Auth: request(t).Auth})
	if err != nil || !strings.Contains(resolved.GetRef(), "@sha256:") {
		t.Fatal(resolved, err)
	}
	_, err = client.ResolveBaseImage(ctx, &builder.ResolveBaseImageRequest{Ref: "NOT A REFERENCE"})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}

	staged, err := sugar.Build(ctx, client, request(t))
	if err != nil {
		t.Fatal(err)
	}
	if !staged.NeedsBuild {
		t.Fatal("it was never built")
	}
	builds, err := client.ListBuilds(ctx, &builder.ListBuildsRequest{})
	if err != nil || len(builds.GetBuilds()) != 1 || builds.GetBuilds()[0].GetRef() != staged.Ref {
		t.Fatal(builds, err)
	}
	info, err := staged.LogInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Joined late: what was said before is there all the same.
	time.Sleep(200 * time.Millisecond)
	var followed, copied bytes.Buffer
	if err := (&sugar.Follower{}).Copy(ctx, info, &followed); err != nil {
		t.Fatal(err)
	}
	if _, err := staged.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sugar.CopyLog(ctx, client, &builder.LogsRequest{BuildRef: staged.Ref}, &copied); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{followed.String(), copied.String()} {
		if !strings.Contains(log, "said at first") || !strings.Contains(log, "said at last") {
			t.Fatal(log)
		}
	}
	again, err := sugar.Build(ctx, client, request(t))
	if err != nil || again.NeedsBuild || again.Ref != staged.Ref {
		t.Fatal(again, err)
	}
	subassembly(t, connection, staged.Ref)
}

// watched is a log that tells when it holds something.
type watched struct {
	bytes.Buffer
	wanted string
	seen   chan struct{}
	once   sync.Once
}

func (w *watched) Write(piece []byte) (int, error) {
	n, err := w.Buffer.Write(piece)
	if strings.Contains(w.String(), w.wanted) {
		w.once.Do(func() { close(w.seen) })
	}
	return n, err
}

// The server is killed while both logs are read, and started again: tests/src/sdk.rs does when it finds the mark.
func TestLogsAreReadAcrossARestart(t *testing.T) {
	ctx := background(t)
	mark := setting(t, "KILN_TEST_MARK")
	client := builder.NewImageBuilderClient(dial(t))
	staged, err := sugar.Build(ctx, client, request(t))
	if err != nil {
		t.Fatal(err)
	}
	info, err := staged.LogInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ways := []func(io.Writer) error{
		func(to io.Writer) error { return (&sugar.Follower{}).Copy(ctx, info, to) },
		func(to io.Writer) error {
			return sugar.CopyLog(ctx, client, &builder.LogsRequest{BuildId: staged.BuildID}, to)
		},
	}
	logs := make([]*watched, len(ways))
	ends := make([]chan error, len(ways))
	for n, way := range ways {
		logs[n] = &watched{wanted: "said at first", seen: make(chan struct{})}
		ends[n] = make(chan error, 1)
		go func() { ends[n] <- way(logs[n]) }()
	}
	for n := range ways {
		select {
		case <-logs[n].seen:
		case err := <-ends[n]:
			t.Fatal(n, err)
		}
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range ways {
		if err := <-ends[n]; err != nil {
			t.Fatal(n, err)
		}
		log := logs[n].String()
		if log != logs[0].String() || strings.Count(log, "said at first") != 1 || strings.Count(log, "said at last") != 1 {
			t.Fatalf("%d: %s", n, log)
		}
	}
	if _, err := staged.Result(ctx); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	again, err := sugar.Build(ctx, client, request(t))
	if err != nil || again.Ref != staged.Ref {
		t.Fatal(again, err)
	}
	if _, err := again.Result(ctx); err != nil {
		t.Fatal(err)
	}
}

func subassembly(t *testing.T, connection *grpc.ClientConn, image string) {
	ctx := background(t)
	client := builder.NewSubassemblyServiceClient(connection)
	if _, err := client.CreateSubassembly(ctx, &builder.CreateSubassemblyRequest{OciReference: image}); err != nil {
		t.Fatal(err)
	}
	for {
		answer, err := client.GetSubassembly(ctx, &builder.GetSubassemblyRequest{OciReference: image})
		if err != nil {
			t.Fatal(err)
		}
		switch answer.GetStatus().GetPhase() {
		case builder.SubassemblyPhase_SUBASSEMBLY_PHASE_CREATING:
			time.Sleep(50 * time.Millisecond)
		case builder.SubassemblyPhase_SUBASSEMBLY_PHASE_AVAILABLE:
			if answer.GetStatus().GetUrl() == "" || len(answer.GetStatus().GetManifest()) == 0 {
				t.Fatal(answer)
			}
			return
		default:
			t.Fatal(answer.GetStatus().GetMessage())
		}
	}
}
