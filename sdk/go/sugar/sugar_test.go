// SPDX-License-Identifier: Apache-2.0

package sugar_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"testing"
	"time"

	"go.uber.org/mock/gomock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"kiln.dev/sdk/go/builder"
	"kiln.dev/sdk/go/builder/mock"
	"kiln.dev/sdk/go/sugar"
)

const patience = 60 * time.Second

// says makes a client whose builds say this, and then end with err.
func says(t *testing.T, err error, responses ...*builder.BuildResponse) builder.ImageBuilderClient {
	t.Helper()
	control := gomock.NewController(t)
	stream := mock.NewMockImageBuilder_BuildClient(control)
	var calls []any
	for _, response := range responses {
		calls = append(calls, stream.EXPECT().Recv().Return(response, nil).Call)
	}
	calls = append(calls, stream.EXPECT().Recv().Return(nil, err).Call)
	gomock.InOrder(calls...)
	client := mock.NewMockImageBuilderClient(control)
	client.EXPECT().Build(gomock.Any(), gomock.Any()).Return(stream, nil)
	return client
}

func running(message string) *builder.BuildResponse {
	info := &builder.BuildInfo{BuildId: "id", LogInfo: &builder.LogInfo{Url: "http://localhost/logs/1"}}
	return &builder.BuildResponse{Ref: "ref", BaseRef: "base", Status: builder.BuildStatus_running, Message: message, Info: info}
}

func ended(status builder.BuildStatus, message string) *builder.BuildResponse {
	return &builder.BuildResponse{Ref: "ref", BaseRef: "base", Status: status, Message: message}
}

func background(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	return ctx
}

func TestAnImageThatIsThereNeedsNoBuild(t *testing.T) {
	ctx := background(t)
	staged, err := sugar.Build(ctx, says(t, io.EOF, ended(builder.BuildStatus_done_success, "")), &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if staged.NeedsBuild || staged.BuildID != "" || staged.Ref != "ref" || staged.BaseRef != "base" {
		t.Fatalf("%+v", staged)
	}
	if _, err := staged.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := staged.LogInfo(ctx); !errors.Is(err, sugar.ErrNoLog) {
		t.Fatal(err)
	}
}

func TestABuildIsFollowedToItsEnd(t *testing.T) {
	ctx := background(t)
	client := says(t, io.EOF, running("one"), running("two"), ended(builder.BuildStatus_done_success, ""))
	staged, err := sugar.Build(ctx, client, &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !staged.NeedsBuild || staged.BuildID != "id" {
		t.Fatal("it is built")
	}
	info, err := staged.LogInfo(ctx)
	if err != nil || info.GetUrl() == "" {
		t.Fatal(info, err)
	}
	result, err := staged.Result(ctx)
	if err != nil || result.GetStatus() != builder.BuildStatus_done_success {
		t.Fatal(result, err)
	}
}

func TestAFailedBuildIsAnErrorWithTheServicesWords(t *testing.T) {
	ctx := background(t)
	client := says(t, io.EOF, running(""), ended(builder.BuildStatus_done_failure, "build failed: no"))
	staged, err := sugar.Build(ctx, client, &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = staged.Result(ctx)
	var failed *sugar.FailedError
	if !errors.As(err, &failed) || err.Error() != "build failed: no" {
		t.Fatal(err)
	}
}

func TestAStreamThatBreaksOffIsNoResult(t *testing.T) {
	ctx := background(t)
	broken := errors.New("connection lost")
	staged, err := sugar.Build(ctx, says(t, broken, running("")), &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.Result(ctx); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	staged, err = sugar.Build(ctx, says(t, io.EOF, running("")), &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.Result(ctx); err == nil {
		t.Fatal("a stream that ends while the build runs has no result")
	}
	if _, err := sugar.Build(ctx, says(t, io.EOF), &builder.BuildRequest{}); err == nil {
		t.Fatal("a stream without a word is no build")
	}
}

// hangs makes a client whose build runs until its context ends.
func hangs(t *testing.T) builder.ImageBuilderClient {
	t.Helper()
	control := gomock.NewController(t)
	stream := mock.NewMockImageBuilder_BuildClient(control)
	var of context.Context
	gomock.InOrder(
		stream.EXPECT().Recv().Return(&builder.BuildResponse{Status: builder.BuildStatus_running}, nil).Call,
		stream.EXPECT().Recv().DoAndReturn(func() (*builder.BuildResponse, error) {
			<-of.Done()
			return nil, of.Err()
		}).Call,
	)
	client := mock.NewMockImageBuilderClient(control)
	client.EXPECT().Build(gomock.Any(), gomock.Any()).DoAndReturn(
		func(ctx context.Context, _ *builder.BuildRequest, _ ...grpc.CallOption) (builder.ImageBuilder_BuildClient, error) {
			of = ctx
			return stream, nil
		})
	return client
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	client := hangs(t)
	staged, err := sugar.Build(background(t), client, &builder.BuildRequest{})
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := staged.Result(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := staged.LogInfo(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	staged.Close()
	if _, err := staged.Result(background(t)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestALogIsGoneOnWithWhereItBrokeOff(t *testing.T) {
	log := []byte("one\ntwo\nthree\n")
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offset, _ := strconv.Atoi(r.URL.Query().Get("offset"))
		asked = append(asked, r.URL.Query().Get("offset"))
		if r.Header.Get("x-token") != "secret" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		end := min(offset+6, len(log))
		w.Write(log[offset:end])
		if end < len(log) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	info := &builder.LogInfo{Url: server.URL + "/logs/1?censored=true", Headers: map[string]string{"x-token": "secret"}}
	var copied bytes.Buffer
	follower := sugar.Follower{}
	if err := follower.Copy(background(t), info, &copied); err != nil {
		t.Fatal(err)
	}
	if copied.String() != string(log) || follower.Offset != int64(len(log)) {
		t.Fatalf("%q, asked %v", copied.String(), asked)
	}
	info.Headers = nil
	if err := (&sugar.Follower{}).Copy(background(t), info, io.Discard); err == nil {
		t.Fatal("a log that is refused is an error")
	}
}

func TestALogThatIsSilentForLongIsNotGivenUp(t *testing.T) {
	const silences = 3 * sugar.TriesMax
	hold := 5 * time.Millisecond
	sugar.Hurry(t, hold)
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.(http.Flusher).Flush()
		if asked <= silences {
			// What a proxy does with a connection on which nothing is said.
			time.Sleep(2 * hold)
			panic(http.ErrAbortHandler)
		}
		w.Write([]byte("at last"))
	}))
	defer server.Close()
	var copied bytes.Buffer
	if err := (&sugar.Follower{}).Copy(background(t), &builder.LogInfo{Url: server.URL}, &copied); err != nil {
		t.Fatal(err)
	}
	if copied.String() != "at last" || asked != silences+1 {
		t.Fatalf("%q after %d", copied.String(), asked)
	}
}

func TestAServerThatNeverBringsAnythingIsGivenUp(t *testing.T) {
	sugar.Hurry(t, time.Hour)
	for name, answer := range map[string]http.HandlerFunc{
		"breaks off": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"has problems": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
	} {
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			answer(w, r)
		}))
		err := (&sugar.Follower{}).Copy(background(t), &builder.LogInfo{Url: server.URL}, io.Discard)
		server.Close()
		if err == nil || asked != sugar.TriesMax {
			t.Fatalf("%s: %v after %d", name, err, asked)
		}
	}
}

// logs makes a client whose logs are, one after the other, these pieces and then this error.
func logs(t *testing.T, streams ...[]any) builder.ImageBuilderClient {
	t.Helper()
	control := gomock.NewController(t)
	client := mock.NewMockImageBuilderClient(control)
	var opened []any
	for _, items := range streams {
		stream := mock.NewMockImageBuilder_LogsClient(control)
		var calls []any
		for _, item := range items {
			if err, ended := item.(error); ended {
				calls = append(calls, stream.EXPECT().Recv().Return(nil, err).Call)
				continue
			}
			piece := &builder.LogsResponse{Content: []byte(item.(string))}
			calls = append(calls, stream.EXPECT().Recv().Return(piece, nil).Call)
		}
		gomock.InOrder(calls...)
		opened = append(opened, client.EXPECT().Logs(gomock.Any(), gomock.Any()).Return(stream, nil).Call)
	}
	gomock.InOrder(opened...)
	return client
}

func TestALogOverGrpcIsGoneOnWithWhenTheServiceComesBack(t *testing.T) {
	sugar.Hurry(t, time.Hour)
	away := status.Error(codes.Unavailable, "server is shutting down")
	client := logs(t, []any{"one\n", "tw", away}, []any{away}, []any{"on", "e\ntwo", "\n", "three\n", io.EOF})
	var copied bytes.Buffer
	err := sugar.CopyLog(background(t), client, &builder.LogsRequest{BuildId: "id"}, &copied)
	if err != nil || copied.String() != "one\ntwo\nthree\n" {
		t.Fatalf("%q %v", copied.String(), err)
	}
	// Under a name there might be another build by then, and what is refused stays refused.
	for _, row := range []struct {
		request *builder.LogsRequest
		err     error
	}{
		{&builder.LogsRequest{BuildRef: "ref"}, away},
		{&builder.LogsRequest{BuildId: "id"}, status.Error(codes.NotFound, "build not found")},
	} {
		err := sugar.CopyLog(background(t), logs(t, []any{"one\n", row.err}), row.request, io.Discard)
		if status.Code(err) != status.Code(row.err) {
			t.Fatal(err)
		}
	}
	var never [][]any
	for range sugar.TriesMax {
		never = append(never, []any{away})
	}
	err = sugar.CopyLog(background(t), logs(t, never...), &builder.LogsRequest{BuildId: "id"}, io.Discard)
	if status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, status.Error(codes.Unavailable, "the disk is full") }

func TestAWriterThatFailsEndsTheCopying(t *testing.T) {
	sugar.Hurry(t, time.Hour)
	client := logs(t, []any{"one\n"})
	if err := sugar.CopyLog(background(t), client, &builder.LogsRequest{BuildId: "id"}, full{}); err == nil {
		t.Fatal("nothing was written")
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	for n := range 20 {
		ctx, stop := context.WithCancel(t.Context())
		staged, err := sugar.Build(ctx, hangs(t), &builder.BuildRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			staged.Close()
		}
		stop()
		if _, err := staged.Result(background(t)); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	patient := background(t)
	for runtime.NumGoroutine() > before {
		if patient.Err() != nil {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(time.Millisecond)
	}
}
