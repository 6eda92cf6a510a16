package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/boughdb/bough/sdk"
)

// wait waits for operations unless --no-wait, with a line on stderr that shows the time when stderr is a terminal. It
// returns the operations as they ended.
func (a *app) wait(ctx context.Context, c *sdk.Client, ops []sdk.Operation) ([]sdk.Operation, error) {
	if a.noWait || len(ops) == 0 {
		if len(ops) > 0 && a.output != "json" {
			going := fmt.Sprintf("%d operations go on", len(ops))
			if len(ops) == 1 {
				going = "1 operation goes on"
			}
			a.note("%s; see: bough operations list --project-id %s", going, ops[0].ProjectID)
		}
		return ops, nil
	}
	var line *spinner
	progress := func(sdk.Operation) {}
	if a.IsTTY(a.Err) {
		line = newSpinner(a)
		line.Start()
		// Safe twice: an early return must leave no line behind.
		defer line.Stop()
		line.say(string(ops[0].Action))
		progress = func(op sdk.Operation) { line.say(string(op.Action) + " " + string(op.Status)) }
	}
	return c.WaitForOperations(ctx, ops, progress)
}

// spinner is one line on a terminal that is redrawn ten times a second until Stop.
type spinner struct {
	a          *app
	begun      time.Time
	mu         sync.Mutex
	text       string
	stop, done chan struct{}
	start, end sync.Once
}

func newSpinner(a *app) *spinner {
	return &spinner{a: a, begun: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
}

func (s *spinner) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
}

// Start begins to draw.
func (s *spinner) Start() { s.start.Do(func() { go s.draw() }) }

// Stop clears the line and waits until nothing draws any more.
func (s *spinner) Stop() {
	s.end.Do(func() { close(s.stop) })
	<-s.done
}

func (s *spinner) draw() {
	defer close(s.done)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	defer fmt.Fprint(s.a.Err, "\r\x1b[K")
	for i := 0; ; i++ {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		text := s.text
		s.mu.Unlock()
		fmt.Fprintf(s.a.Err, "\r\x1b[K%c %s %.1fs", `|/-\`[i%4], printable(text), time.Since(s.begun).Seconds())
	}
}

// confirm asks before something is deleted, when there is somebody to ask.
func (a *app) confirm(format string, args ...any) error {
	if a.yes || !a.IsTTY(a.In) || !a.IsTTY(a.Err) {
		return nil
	}
	fmt.Fprintf(a.Err, "%s [y/N] ", printable(fmt.Sprintf(format, args...)))
	reply, _ := bufio.NewReader(a.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(reply)) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("nothing was deleted")
}
