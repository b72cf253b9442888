// SPDX-License-Identifier: Apache-2.0

package sugar_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"go.uber.org/mock/gomock"
	"google.golang.org/grpc"
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
	info := &builder.BuildInfo{LogInfo: &builder.LogInfo{Url: "http://localhost/logs/1"}}
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
	if staged.NeedsBuild || staged.Ref != "ref" || staged.BaseRef != "base" {
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
	if !staged.NeedsBuild {
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

func TestWaitingEndsWithItsContext(t *testing.T) {
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
