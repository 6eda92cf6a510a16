package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/proxy"
	"github.com/boughdb/bough/internal/service"
	"github.com/boughdb/bough/sdk"
)

// startLimit covers a first start: making the pool, the control database and their recovery.
const startLimit = 3 * time.Minute

// upCommand starts a server in the background and ends with something to paste into psql.
func upCommand() *cobra.Command {
	var cfg service.Config
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the server in the background and print how to connect",
		Long: `Start the server in the background unless it runs already, make a first project if there is none, and print the
address of the API, the file with its key and a connection string that works. It takes the flags of 'bough serve'. When the
port of the Postgres proxy is busy it takes the next free one, and says so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := service.Look(cmd.Context(), cfg.DataDir)
			if err != nil && !core.IsKind(err, core.KindNotFound) {
				return err
			}
			if !st.Healthy {
				if !cmd.Flags().Changed("pg-listen") {
					cfg.PGListen = freePort(cmd.Context(), cfg.PGListen)
				}
				if !cmd.Flags().Changed("http-listen") {
					cfg.HTTPListen = freePort(cmd.Context(), cfg.HTTPListen)
				}
				if st, err = launch(cmd, cfg); err != nil {
					return err
				}
			}
			uri, err := firstProject(cmd.Context(), st)
			if err != nil {
				return err
			}
			fmt.Printf(`Bough is running.

  API          %s
  reference    %s
  API key      in %s
  server log   %s
  stop it      %s down --data-dir %s

Connect:

  psql '%s'

`, st.APIURL, st.Admin.DocsURL(), filepath.Join(st.DataDir, "admin.json"), serverLog(st.DataDir), os.Args[0], st.DataDir, uri)
			return nil
		},
	}
	serverFlags(cmd.Flags(), &cfg)
	return cmd
}

func serverLog(dir string) string { return filepath.Join(dir, "log", "server.log") }

// freePort returns the address, or the next one whose port is free.
func freePort(ctx context.Context, addr string) string {
	host, text, err := net.SplitHostPort(addr)
	port, convErr := strconv.Atoi(text)
	if err != nil || convErr != nil || port == 0 {
		return addr
	}
	for p := port; p < port+100; p++ {
		next := net.JoinHostPort(host, strconv.Itoa(p))
		listeners, err := proxy.Listen(ctx, next, slog.New(slog.DiscardHandler))
		if err != nil {
			continue
		}
		for _, l := range listeners {
			_ = l.Close()
		}
		if p != port {
			fmt.Fprintf(os.Stderr, "Port %d is busy: using %d.\n", port, p)
		}
		return next
	}
	return addr
}

// launch starts `bough serve` in a session of its own and waits until it is ready.
func launch(cmd *cobra.Command, cfg service.Config) (service.Status, error) {
	self, err := os.Executable()
	if err != nil {
		return service.Status{}, err
	}
	path := serverLog(cfg.DataDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return service.Status{}, err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return service.Status{}, err
	}
	defer log.Close()
	args := []string{"serve", "--data-dir", cfg.DataDir, "--pg-listen", cfg.PGListen, "--http-listen", cfg.HTTPListen}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed && f.Name != "data-dir" && f.Name != "pg-listen" && f.Name != "http-listen" {
			if s, ok := f.Value.(pflag.SliceValue); ok {
				for _, v := range s.GetSlice() {
					args = append(args, "--"+f.Name+"="+v)
				}
				return
			}
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	server := exec.Command(self, args...)
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := server.Start(); err != nil {
		return service.Status{}, err
	}
	exited := make(chan error, 1)
	go func() { exited <- server.Wait() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), startLimit)
	defer cancel()
	for {
		st, err := service.Look(ctx, cfg.DataDir)
		if err == nil && st.Healthy && slices.ContainsFunc(st.Servers, func(m service.Member) bool { return m.PID == server.Process.Pid && m.APIURL != "" }) {
			return st, nil
		}
		select {
		case err := <-exited:
			return st, fmt.Errorf("the server ended (%w); the end of %s:\n%s", err, path, tail(path))
		case <-ctx.Done():
			return st, fmt.Errorf("the server did not get ready; see %s", path)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail is the last few hundred bytes of a file.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-800):])
}

// firstProject returns a connection string to a project, made if there is none.
func firstProject(ctx context.Context, st service.Status) (string, error) {
	if st.Admin == nil {
		return "", fmt.Errorf("cannot read %s; run this as the user that runs the server", filepath.Join(st.DataDir, "admin.json"))
	}
	client, err := sdk.New(sdk.Options{BaseURL: st.Admin.APIURL, APIKey: st.Admin.APIKey})
	if err != nil {
		return "", err
	}
	for project, err := range client.Projects(ctx, sdk.ProjectFilter{}) {
		if err != nil {
			return "", err
		}
		return connection(ctx, client, project.ID)
	}
	created, err := client.CreateProject(ctx, sdk.ProjectCreate{})
	if err != nil {
		return "", err
	}
	if _, err := client.WaitForOperations(ctx, created.Operations, nil); err != nil {
		return "", err
	}
	return connection(ctx, client, created.Project.ID)
}

// connection is a string for the first database of a project's default branch, as its owner.
func connection(ctx context.Context, client *sdk.Client, projectID string) (string, error) {
	for branch, err := range client.Branches(ctx, projectID, sdk.BranchFilter{}) {
		if err != nil {
			return "", err
		}
		if !branch.Default {
			continue
		}
		databases, err := client.Databases(ctx, projectID, branch.ID)
		if err != nil {
			return "", err
		}
		if len(databases) == 0 {
			return "", fmt.Errorf("project %s has no database; create one with: bough databases create", projectID)
		}
		return client.ConnectionURI(ctx, projectID, sdk.ConnectionURI{Database: databases[0].Name, Role: databases[0].OwnerName})
	}
	return "", fmt.Errorf("project %s has no default branch", projectID)
}
