// SPDX-License-Identifier: Apache-2.0

// Package sugar makes the streams of the Image Builder API into what most callers want: an answer at once, a result to wait for,
// and a log to copy. Everything ends when its context does; that a caller goes away never ends a build.
package sugar

import (
	"context"
	"errors"
	"fmt"
	"io"

	"kiln.dev/sdk/go/builder"
)

// FailedError is a build that ended, and not well. Its text is the service's.
type FailedError struct {
	// Response is the last message of the build.
	Response *builder.BuildResponse
}

func (e *FailedError) Error() string { return e.Response.GetMessage() }

// ErrNoLog says that a build has no log: nothing had to be built.
var ErrNoLog = errors.New("nothing was built, so there is no log")

// Staged is a build that was asked for: what is known at once, and what is known later.
type Staged struct {
	// Ref is the name of the workspace image.
	Ref string
	// BaseRef is the name of its base image.
	BaseRef string
	// NeedsBuild is false when the image was there already.
	NeedsBuild bool
	// BuildID is the build; empty when none is needed.
	BuildID string

	logKnown chan struct{}
	logInfo  *builder.LogInfo
	ended    chan struct{}
	response *builder.BuildResponse
	err      error
	stop     context.CancelFunc
}

// Build asks for a build and returns when the service has answered for the first time. The build is followed in the background until it
// ends, ctx does, or Close is called.
func Build(ctx context.Context, client builder.ImageBuilderClient, request *builder.BuildRequest) (*Staged, error) {
	ctx, stop := context.WithCancel(ctx)
	stream, err := client.Build(ctx, request)
	if err != nil {
		stop()
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		stop()
		if errors.Is(err, io.EOF) {
			err = errors.New("the service ended the stream without a word")
		}
		return nil, err
	}
	staged := &Staged{
		Ref:        first.GetRef(),
		BaseRef:    first.GetBaseRef(),
		NeedsBuild: first.GetStatus() != builder.BuildStatus_done_success,
		BuildID:    first.GetInfo().GetBuildId(),
		logKnown:   make(chan struct{}),
		ended:      make(chan struct{}),
		stop:       stop,
	}
	go staged.follow(stream, first)
	return staged, nil
}

// follow reads the stream to its end. It is the only one that writes the fields behind the two channels.
func (s *Staged) follow(stream builder.ImageBuilder_BuildClient, response *builder.BuildResponse) {
	defer s.stop()
	defer close(s.ended)
	for {
		if info := response.GetInfo().GetLogInfo(); s.logInfo == nil && info.GetUrl() != "" {
			s.logInfo = info
			close(s.logKnown)
		}
		s.response = response
		next, err := stream.Recv()
		switch {
		case err == nil:
			response = next
			continue
		case !errors.Is(err, io.EOF):
			s.err = err
		case response.GetStatus() == builder.BuildStatus_done_failure:
			s.err = &FailedError{Response: response}
		case response.GetStatus() != builder.BuildStatus_done_success:
			s.err = fmt.Errorf("the stream ended while the build was %s", response.GetStatus())
		}
		return
	}
}

// Result waits until the build has ended and returns its last message, with a *FailedError when it did not end well.
func (s *Staged) Result(ctx context.Context) (*builder.BuildResponse, error) {
	select {
	case <-s.ended:
		return s.response, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// LogInfo waits until it is known where the log is; ErrNoLog when there is none.
func (s *Staged) LogInfo(ctx context.Context) (*builder.LogInfo, error) {
	select {
	case <-s.logKnown:
		return s.logInfo, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ended:
	}
	// Both may have happened at once.
	if s.logInfo != nil {
		return s.logInfo, nil
	}
	if s.err != nil {
		return nil, s.err
	}
	return nil, ErrNoLog
}

// Close stops following. The build goes on.
func (s *Staged) Close() {
	s.stop()
	<-s.ended
}
