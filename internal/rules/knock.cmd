@echo off
rem Knocks at a host's ports, with what Windows 10 and later have: curl.exe for TCP,
rem nslookup for UDP, ping. Made by sallyport rules --batch.
rem
rem   knock.cmd HOST PORT...
rem
rem PORT is 7000 or 7000/tcp, 8500/udp, icmp or 37/icmp. HOST is a name, an IPv4 address
rem or an IPv6 address without brackets. A knock has no answer: try the service behind it.
setlocal EnableExtensions DisableDelayedExpansion

rem What is knocked at where no PORT is given.
set "STEPS="

set "TARGET=%~1"
if not defined TARGET goto usage
rem A delayed variable is not read for commands. What is left of it without the
rem characters that a host can have is not to be there.
setlocal EnableDelayedExpansion
for /f "eol=A delims=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:%%_-" %%c in ("!TARGET!") do goto badhost
if "!TARGET:~0,1!"=="-" goto badhost
set "INURL=!TARGET!"
if not "!TARGET::=!"=="!TARGET!" set "INURL=[!TARGET!]"

shift
if "%~1"=="" (
    if not defined STEPS goto usage
    for %%s in (!STEPS!) do (
        call :knock "%%s"
        if errorlevel 2 exit /b 2
    )
    exit /b 0
)
:next
if "%~1"=="" exit /b 0
call :knock "%~1"
if errorlevel 2 exit /b 2
shift
goto next

:knock
set "STEP=%~1"
for /f "eol=0 delims=0123456789/tcpudim" %%c in ("!STEP!") do goto badstep
set "NUMBER="
set "PROTO=tcp"
for /f "tokens=1,2 delims=/" %%a in ("!STEP!") do (
    set "NUMBER=%%a"
    if not "%%b"=="" set "PROTO=%%b"
)
if "!STEP!"=="icmp" (
    ping -n 1 -w 300 !TARGET! >nul 2>&1
    exit /b 0
)
for /f "eol=0 delims=0123456789" %%c in ("!NUMBER!") do goto badstep
if "!NUMBER!"=="" goto badstep
if not "!NUMBER:~5!"=="" goto badstep
if !NUMBER! GTR 65535 goto badstep
if "!PROTO!"=="icmp" (
    ping -n 1 -w 300 -l !NUMBER! !TARGET! >nul 2>&1
    exit /b 0
)
if !NUMBER! LSS 1 goto badstep
if "!PROTO!"=="tcp" (
    curl.exe -s --connect-timeout 1 --max-time 1 "telnet://!INURL!:!NUMBER!" <nul >nul 2>&1
    exit /b 0
)
if "!PROTO!"=="udp" (
    rem The question is a knock, whatever it asks; it may be sent more than once.
    nslookup -port=!NUMBER! -timeout=1 -retry=1 . !TARGET! <nul >nul 2>&1
    exit /b 0
)
goto badstep

:usage
echo knock.cmd: usage: knock.cmd HOST PORT...   with ports as 7000, 7000/tcp or 8500/udp 1>&2
exit /b 2
:badhost
echo knock.cmd: the host must be a name or an address without brackets 1>&2
exit /b 2
:badstep
echo knock.cmd: a step is 7000, 7000/tcp, 8500/udp, icmp or 37/icmp, with ports from 1 to 65535 1>&2
exit /b 2
