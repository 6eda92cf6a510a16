package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// InitOptions says where a new cluster goes and who owns it.
type InitOptions struct {
	DataDir   string              // absolute; absent or empty
	WALDir    string              // absolute; absent or empty; "" keeps pg_wal inside DataDir
	Superuser string              // bootstrap superuser; "" means AdminRole
	Cred      *syscall.Credential // OS user of the server; required when running as root, else nil
}

// InitDB makes an empty cluster with data checksums and UTF-8, durable when it returns. Missing folders are made and given
// to the server's OS user. On failure the cluster's folders are left empty or absent, as initdb leaves them.
func InitDB(ctx context.Context, b Build, o InitOptions) error {
	const op = "postgres.initdb"
	if o.Superuser == "" {
		o.Superuser = AdminRole
	}
	for _, dir := range []string{o.DataDir, o.WALDir} {
		if dir == "" {
			continue
		}
		if err := OwnedDir(dir, o.Cred); err != nil {
			return core.Wrap(err, op, "")
		}
	}
	args := []string{
		"-D", o.DataDir, "-U", o.Superuser, "--encoding=UTF8", "--data-checksums",
		"--auth=trust", "--no-instructions",
	}
	if o.WALDir != "" {
		args = append(args, "--waldir="+o.WALDir)
	}
	if b.Major >= 17 {
		args = append(args, "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
	}
	var err error
	// Systems whose C library has no C.UTF-8 sort alike under C, which every one has.
	for _, locale := range []string{"C.UTF-8", "C"} {
		var out []byte
		cmd := exec.CommandContext(ctx, b.Tool("initdb"), append(args, "--locale="+locale)...)
		cmd.Env = ServerEnv()
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: o.Cred}
		if out, err = cmd.CombinedOutput(); err == nil {
			return nil
		}
		err = fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
		if ctx.Err() != nil || !bytes.Contains(out, []byte("locale")) {
			break
		}
	}
	return core.Wrap(err, op, "see initdb's output in the error")
}

// OwnedDir makes a folder (mode 0700) that belongs to cred's user; nil cred leaves ownership alone. Parents are made as the
// caller, traversable by everyone.
func OwnedDir(dir string, cred *syscall.Credential) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if cred == nil {
		return nil
	}
	return os.Chown(dir, int(cred.Uid), int(cred.Gid))
}

// ServerEnv is the whole environment of a PostgreSQL program: nothing of the platform's own, which may hold secrets.
func ServerEnv() []string {
	env := []string{"LC_ALL=C.UTF-8", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// CreateTemplate makes the cluster that projects are cloned from: InitDB, then Bootstrap on a server of its own, then a
// clean shutdown, after which everything is durable. A WALDir and DataDir of an earlier, interrupted try must be emptied
// first. scratch is a folder with a short path that the server's OS user can traverse, for the socket.
func CreateTemplate(ctx context.Context, b Build, o InitOptions, scratch string) error {
	if err := InitDB(ctx, b, o); err != nil {
		return err
	}
	return withServer(ctx, b, o, scratch, func(conn *pgx.Conn) error { return Bootstrap(ctx, conn) })
}

// withServer runs f beside a server that lives only as long as f, and ends with a clean shutdown.
func withServer(ctx context.Context, b Build, o InitOptions, scratch string, f func(*pgx.Conn) error) (err error) {
	const op = "postgres.create_template"
	sockDir, err := os.MkdirTemp(scratch, "tmpl")
	if err != nil {
		return core.Wrap(err, op, "")
	}
	defer func() { _ = os.RemoveAll(sockDir) }()
	if err := OwnedDir(sockDir, o.Cred); err != nil {
		return core.Wrap(err, op, "")
	}
	var log bytes.Buffer
	cmd := exec.Command(b.Tool("postgres"), "-D", o.DataDir, "-k", sockDir, "-c", "listen_addresses=", "-c", "wal_recycle=off",
		"-c", "huge_pages=off", "-c", "shared_buffers=16MB", "-c", "log_destination=stderr", "-c", "logging_collector=off")
	cmd.Env, cmd.Dir, cmd.Stderr = ServerEnv(), "/", &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: o.Cred, Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return core.Wrap(err, op, "")
	}
	exited := make(chan struct{})
	var waitErr error                                   // valid once exited is closed
	go func() { waitErr = cmd.Wait(); close(exited) }() // ends below: every return waits for it
	gone := false
	defer func() {
		if !gone {
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			select {
			case <-exited:
			case <-time.After(10 * time.Second):
				_ = cmd.Process.Kill()
				<-exited
			}
		}
		if err != nil {
			err = core.Wrap(err, op, strings.TrimSpace(tail(log.String(), 10)))
		}
	}()

	var conn *pgx.Conn
	for conn == nil {
		if conn, err = Connect(ctx, sockDir, AdminDatabase); err == nil {
			break
		}
		select {
		case <-exited:
			gone = true
			return fmt.Errorf("postgres ended at start: %w: %w", waitErr, err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	err = f(conn)
	closeConn(ctx, conn)
	if err != nil {
		return err
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-exited:
		gone = true
		return waitErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// closeConn ends a session even when ctx is already cancelled.
func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
